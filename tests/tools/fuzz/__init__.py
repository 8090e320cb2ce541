"""Files that are edited at random, given to whatever reads such files: `make fuzz`.

`kinds.py` lists the kinds of files. `commands.py` has those of `schedcc`, `models.py`, `texts.py`,
`results.py` those of `pipeval`, and `ranks.py` what ranks tell each other. `edits.py` edits.
"""
