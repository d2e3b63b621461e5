"""The label store: tasks for people, what they said, and who they are. Knows neither the web nor torch."""
