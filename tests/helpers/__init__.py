"""What tests of several rooms share. Test modules import from here, never from one another."""
