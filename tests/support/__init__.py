"""Parts that several folders of tests share."""
