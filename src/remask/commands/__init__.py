"""What each command does: parse its options, call the library, print."""
