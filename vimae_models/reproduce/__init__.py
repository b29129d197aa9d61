"""`vimae reproduce`: the tables and figures of the papers, trained, measured and laid beside the published ones.

One file per paper holds its targets (`infovae`, `vimae`, `vmi`, `imae`); `targets` names them; `engine`
trains what is not trained yet; `report` writes the page.
"""
