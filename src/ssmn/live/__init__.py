"""A live view of a memory at work: sessions that read a stream while it is drawn, in a terminal or a browser.

`feeds` has the sources, `reading` a stream read in bounded pieces, `session` its thread and its updates, `hub` the
sessions of several visitors, `server` the dashboard's HTTP side and `page` what the browser gets, `terminal` the view
of `ssmn watch`. The last two need extras, and are imported by name.
"""

from ssmn.live.feeds import Feed, Reader, Source, source_for
from ssmn.live.hub import Hub, Limits
from ssmn.live.reading import Reading, Report
from ssmn.live.session import Session
from ssmn.live.updates import Update

__all__ = ["Feed", "Hub", "Limits", "Reader", "Reading", "Report", "Session", "Source", "Update", "source_for"]
