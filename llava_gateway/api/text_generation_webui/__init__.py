"""text-generation-webui's API, as it was until November 2023."""
