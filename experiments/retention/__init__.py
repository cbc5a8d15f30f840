"""What one small HFA keeps, finds and answers, in contexts up to 1,000 times longer than its training's."""
