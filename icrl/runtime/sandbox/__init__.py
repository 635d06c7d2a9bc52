"""Running programs that a model wrote, without giving them anything."""
