"""The self-service portal (extra `web`): users manage their own tokens in a browser.

`pam_totp.operations.self_service` changes the tokens, and `sessions` stores each browser's state. Both are
independent of Flask. `app` is the Flask application that serves the pages.
"""
