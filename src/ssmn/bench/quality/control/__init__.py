"""The part about control: agents with a memory in games that need one."""
