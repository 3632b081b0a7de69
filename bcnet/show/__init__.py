"""Print results for people, on stdout: for a terminal of 80 columns, at most ten lines per stage."""

from bcnet.show.check import show_check as show_check
from bcnet.show.comparison import show_comparison as show_comparison
from bcnet.show.doctor import show_costs as show_costs
from bcnet.show.doctor import show_planned as show_planned
from bcnet.show.doctor import show_steps as show_steps
from bcnet.show.space import show_space as show_space
from bcnet.show.stages import show_fields as show_fields
from bcnet.show.stages import show_summary as show_summary
from bcnet.show.tables import show_table as show_table
from bcnet.show.timing import show_timing as show_timing
