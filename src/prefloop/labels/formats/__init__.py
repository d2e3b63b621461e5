"""How judgements leave and come in: a module a family of formats; `table` names them, `writing`, `reading` do files."""
