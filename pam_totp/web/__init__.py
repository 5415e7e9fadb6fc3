"""The self-service portal (extra `web`): users manage their own tokens in a browser.

`pam_totp.operations.self_service` changes the tokens, and `sessions` remembers each browser's state. Neither of them
imports Flask. `app` is the Flask application that serves the pages.
"""
