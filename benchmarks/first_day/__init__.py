"""`make gpu`: the first day with a GPU, from the tests that never ran to one page of what held and what did not."""
