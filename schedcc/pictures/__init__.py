"""Pictures: plans and recorded runs as ranks over time, in a page of their own or as SVG.

A *panel* is what is drawn: a plan with predicted times, a recorded run, or the steps of a plan that
has no times. The page draws on a canvas, because no plotting library that is kept draws and moves
hundreds of thousands of boxes smoothly from a file that needs no network.
"""
