from dataclasses import dataclass


@dataclass
class DataSource:
    path: str
    name: str | None = None
    split: str = "train"
    weight: float = 1.0
    form: str = "choice"

    @classmethod
    def parse(cls, s):
        if isinstance(s, dict):
            return cls(**s)
        if "=" in s:
            d = dict(p.split("=") for p in s.split(","))
            d["weight"] = float(d.get("weight", 1))
            return cls(**d)
        return cls(s)
