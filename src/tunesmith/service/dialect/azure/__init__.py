"""Azure's dialect: the same operations as OpenAI's, in Azure's words."""
