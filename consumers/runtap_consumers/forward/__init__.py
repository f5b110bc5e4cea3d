"""`runtap forward langsmith`: takes runs, and what was thought of them, to LangSmith."""
