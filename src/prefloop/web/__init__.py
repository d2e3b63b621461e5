"""The labelling app: pages and a JSON interface over the label store. Starts without torch."""
