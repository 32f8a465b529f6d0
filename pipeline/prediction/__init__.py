"""What a learned model says of many images: their listing, their answers, the output. No Ray.

listing    which images there are, cut into units of work with stable names
reading    a part of the listing, decoded; what cannot be read has a reason
answers    a unit's table of answers
output     the folder of answers: one parquet file a unit, and what it was made with
"""
