"""Other runtimes, behind one small interface, for checking and for comparison."""
