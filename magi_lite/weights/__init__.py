"""Published weights: found (`layout`), fetched (`hub`), read (`checkpoint`), built (`loader`), moved (`residency`)."""
