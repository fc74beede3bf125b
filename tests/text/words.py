"""A few captions of both languages, for tests that need a vocabulary."""

TEXTS = [
    "red apple", "green apple", "a red circle left of a blue square", "a blue circle right of a red square",
    "smiling cat with heart-eyes", "three green triangles", "two green triangles", "cat face", "dog face", "fire engine", "flag: Japan",
    "火箭", "红苹果", "青苹果", "花痴的猫", "猫脸", "狗脸", "一个红色的圆形在蓝色正方形的左边", "一个蓝色的圆形在红色正方形的右边",
    "三个绿色的三角形", "两个绿色的三角形", "消防车", "消防员", "旗: 日本",
]  # fmt: skip
