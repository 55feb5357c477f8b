"""The load tester: holds polls on real tasks of a real server, changes the tasks, and says what it cost."""
