"""The operator's console under `/console`: pages that the server renders, and forms.

A request passes `application` (headers, session, errors), then the handler of its page (`pages`), which reads through
the same functions as the APIs and renders a template. Nothing is loaded from another origin, and no page needs a script
to be usable.

- `application`: pages, actions, and what every request goes through
- `sessions`, `login`, `openid`: who is logged in
- `visit`, `identifiers`: one request, and ids as its person may see them
- `rendering`, `charts`, `templates/`, `static/`: HTML
- `pages/`: one module per subject
"""
