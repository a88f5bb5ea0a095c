"""The report of a run or a sweep: one HTML file that needs no network.

``pages`` says which sections a report has. A section is a module in ``sections``, and is made of blocks. Each kind of
block has a template in ``templates``.
"""
