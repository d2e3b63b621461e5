"""How text is put to reward models that are more than one output, and how what they say is read."""
