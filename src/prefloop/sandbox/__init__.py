"""A room for generated code: it runs shut into a process of its own, and only values come out.

`session` is the trusted side. `child` is what the untrusted process runs, behind the `fences`; `values` is all that both
say to each other. Standard library only. Whoever calls decides what a value means: nothing that the process says about
itself is believed.
"""
