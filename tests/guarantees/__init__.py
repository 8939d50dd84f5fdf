"""Tests of the promises of the README, under load and with failures."""
