"""Tables of the field, reproduced at a reduced budget and set beside print: what their scripts share."""

from published.grid import Examination, Published, Record, Study
from published.script import check_numbers, command_line, made_folder, named, publish
from published.tables import Claim

__all__ = [
    "Claim",
    "Examination",
    "Published",
    "Record",
    "Study",
    "check_numbers",
    "command_line",
    "made_folder",
    "named",
    "publish",
]
