"""Studies: one experiment run in several arms over several seeds, to decide claims that were written down before.

A study is a file (`definition`). Its runs are ordinary runs in child processes (`running`), their figures are read from the
artefacts (`measuring`), compared seed by seed (`deciding`), and written down with plots (`report`, `plots`). Those that are
built in are the YAML files beside this one.
"""
