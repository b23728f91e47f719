"""Every system in every scenario, trained and compared: what ``edgesplit compare`` does."""
