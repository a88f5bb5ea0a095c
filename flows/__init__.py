"""What a person runs or schedules: the flows, the command line, and how settings are put together."""

import logging

logging.getLogger("factsmith").setLevel(logging.INFO)  # runs tell how they go; whoever starts them says where to
