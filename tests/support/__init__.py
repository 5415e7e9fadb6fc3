"""Support code that several test folders share."""
