"""What turns files into minibatches on the device."""
