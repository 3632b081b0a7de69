"""The commands of `bcnet`, one file a group: parse, call, print. Help imports neither torch nor a runtime."""
