"""Parts about text: language modelling, second reading, characters, the encoder, the output memory."""
