"""The enlightened-memory model: timeline, page states, mechanisms, costs, scenarios, uncertainty."""
