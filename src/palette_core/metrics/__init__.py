"""Built-in sensitivity metrics: what a palettized weight is predicted to cost the model."""
