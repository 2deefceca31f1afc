"""Tables of the field, reproduced at a reduced budget and set beside print: what their scripts share."""

from published.grid import Examination, Published, Record, Study
from published.script import command_line, named, publish
from published.tables import Claim

__all__ = ["Claim", "Examination", "Published", "Record", "Study", "command_line", "named", "publish"]
