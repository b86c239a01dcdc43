"""Measurements on this machine: one file for each thing that is measured, and the verb in command.py."""
