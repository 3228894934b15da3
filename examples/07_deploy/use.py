"""Number seven, second half: another program calls what is deployed, by name. ``python examples/07_deploy/use.py``."""

import cadenza

count_words = cadenza.Function.from_name("counter-example", "count_words")
Greeter = cadenza.Cls.from_name("counter-example", "Greeter")

if __name__ == "__main__":
    print(count_words.remote("to be or not to be"))
    print(Greeter(greeting="good morning").greet.remote("Ada"))
    call = count_words.spawn("this result can be fetched for seven days")
    print(cadenza.FunctionCall.from_id(call.object_id).get())
