"""Plausible wrong answers to the exercise of camouflage.py, with what the check must say."""

from tests.teach.slips import slips

AGGREGATE = '''
def aggregate(v, texts):
    p = (2 * texts @ v).softmax(dim=0)
    w = p / p.mean()
    e = v * texts * w[:, None]
    products = e - e.mean(dim=0)
    return products, products.sum(dim=1)
'''

WRONG = {
    "camouflage.aggregate": slips(
        AGGREGATE,
        ("nothing subtracted", "e - e.mean(dim=0)", "e", "nothing is subtracted"),
        ("over channels", "e.mean(dim=0)", "e.mean(dim=1, keepdim=True)", "it runs over texts"),
        ("mean first", "products = e - e.mean(dim=0)",
         "products = (v * texts - (v * texts).mean(dim=0)) * w[:, None]", "weights first"),
        ("no factor", "2 * texts @ v", "texts @ v", "multiplied by 2"),
        ("shares", "w = p / p.mean()", "w = p", "average 1"),
        ("not weighed", " * w[:, None]", "", "not weighed"),
    ),
}
