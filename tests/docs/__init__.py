"""Tests of the pages: their code runs, and prints what they show."""
