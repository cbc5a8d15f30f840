"""What each part of HFA is worth."""
