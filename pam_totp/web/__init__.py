"""The self-service portal (extra `web`): people look after their own tokens in a browser.

`factors` is what they may do, `sessions` who they are; both know nothing
of Flask. `app` puts them behind pages.
"""
