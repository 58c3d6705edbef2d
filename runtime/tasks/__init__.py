"""What each kind of task does, by kind: functions over the state of a pass."""
