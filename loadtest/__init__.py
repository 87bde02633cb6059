"""Load test: the traffic, the headless run with objectives, and its report. Settings come from the environment."""
