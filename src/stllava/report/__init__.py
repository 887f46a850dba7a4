"""One self-contained page about a finished run, and its numbers as JSON; see `page.report`."""
