"""The documentation site: its generated pages, and the build.

`docs/` holds the pages that people write. `site` adds the pages of the reference, which are generated from the code
when the site is built: the API, the commands, the errors, and the tables of metrics, log events and events to partners.
"""
