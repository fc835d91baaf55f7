"""What a program is called with: batches of rows, made of data in whatever form a user has them."""
