"""The labelling app under load: many annotators, kill -9, PostgreSQL, a million judgements."""
